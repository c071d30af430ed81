"""Train on images of which 10 % carry a planted trigger, and look at what was found. Takes about 15 seconds."""

import antibackdoor

result = antibackdoor.train(
    "embedded",  # or a folder, an .npz, a torch Dataset, or a pair (images, labels)
    model="wrn-10-1",  # or an nn.Module, or a function that builds one
    defence="abl-modified",  # the default trains longer; this takes seconds
    settings={
        "data": {"limit": 2000, "limit_test": 500},
        "attack": {"name": "badnets", "rate": 0.1},  # only because this is an experiment
        "train": {"epochs": 4, "batch_size": 64},
    },
)
metrics, flagged = result.record.metrics, result.isolation.flagged
print(f"{metrics.n_flagged} of {metrics.n_train} images flagged, {metrics.precision:.0%} of them poison")
print("most suspect:", ", ".join(result.data.ids[i] for i in result.isolation.scores.argsort(descending=True)[:5]))
print(f"clean accuracy {metrics.ca:.0%}, attack success {metrics.asr:.0%}")

assert metrics.precision is not None
assert metrics.precision > 0.8, "by chance it would be 0.1"
