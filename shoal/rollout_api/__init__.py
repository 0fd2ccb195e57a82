"""The rollout API: environments post scored groups, a trainer fetches them in batches. Atropos's protocol."""
