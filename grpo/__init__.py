"""GRPO for language-model agents: group relative policy optimization, from scratch.

`train` and `evaluate` run whole programs; the parts that they are made of are public as well.
`__init__.pyi` lists the names, and where each is defined. A name is imported when it is first
used, so `import grpo` is quick and needs no optional package.

Read in this order: `grpo.training.trainer` (the algorithm), `grpo.algorithm` (its formulas),
`grpo.model.policy` and `grpo.tree` (log-probabilities, each shared prefix once), `grpo.rollouts`
and `grpo.generators` (where the episodes come from).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
