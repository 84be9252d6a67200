import time
from helpers import StageProcess, amateur_config, trainer_config

def test_startup(world, tmp_path):
    config = amateur_config(trainer=trainer_config(num_steps=60, checkpoint_every=10))
    inputs = {"data": (world.upstream,), "genotype": (world.genotype,)}
    t = time.time()
    p = StageProcess(tmp_path, "amateur", config, inputs, "a", 2, world.environment)
    p.ref()
    print(p.log()); print(p.events_path.read_text().splitlines()[0]); print(t)
    for e in p.events("step")[:2]: print(e["at"] - t)
    print(p.events("step")[-1]["at"] - t, time.time() - t)
