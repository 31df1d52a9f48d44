"""Jobs that run a model under a policy and record what its heads did: models, prompts, session, probes, capture."""
