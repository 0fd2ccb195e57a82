"""Asking a judge: the client, its cache, the templates of questions and the reading of replies."""
