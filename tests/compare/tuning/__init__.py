"""The parts of preference_tuning.py, which has the options and the order of the work.

`shared` is what all of them use, `rollouts` reads what was sampled and scored, `model` is the way from a GGUF file to torch
and back, `training` tunes, `judging` says what came of it.
"""
