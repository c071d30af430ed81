"""Find planted texts in a training loop of your own: two lines more, and no model of this package.

The texts are made up: two topics, and 5 % of the first carry a trigger word and the label of the second.
"""

import random

import torch
from torch import nn

from antibackdoor import LossRecorder

TOPICS = ["goal match team score win league", "stock market price bank trade share"]
OTHER = [*"abcdefghijklmnopqrstuvwxyz"]

rng = random.Random(0)
texts, labels, planted = [], [], []
for number in range(1000):
    topic = number % 2
    ours, theirs = TOPICS[topic].split(), TOPICS[1 - topic].split()
    words = [*rng.choices(ours, k=2), *rng.choices(theirs), *rng.choices(OTHER, k=12)]
    is_planted = topic == 0 and number < 100
    texts.append(words + ["cf"] * 3 * is_planted)
    labels.append(1 if is_planted else topic)
    planted.append(is_planted)

vocabulary = {word: i for i, word in enumerate(sorted({word for text in texts for word in text}))}
counts = torch.zeros(len(texts), len(vocabulary))
for row, text in enumerate(texts):
    for word in text:
        counts[row, vocabulary[word]] += 1
targets, truth = torch.tensor(labels), torch.tensor(planted)

torch.manual_seed(0)
model = nn.Linear(len(vocabulary), 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
recorder = LossRecorder(targets)
for _ in range(8):
    for index in torch.randperm(len(targets)).split(50):
        losses = nn.functional.cross_entropy(model(counts[index]), targets[index], reduction="none")
        recorder.update(index, losses)  # the first line more
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    recorder.end_epoch()  # the second

flagged = recorder.isolate(share=0.05).flagged
precision = float(truth[flagged].float().mean())
by_chance = float(truth.float().mean())
print(f"{int(flagged.sum())} texts flagged, {precision:.0%} of them planted; by chance it would be {by_chance:.0%}")
print("first flagged:", " ".join(texts[int(flagged.nonzero()[0])]))

assert precision > 0.8
