"""For every key of the configuration, a test that shows what changing it does. One module a node."""
