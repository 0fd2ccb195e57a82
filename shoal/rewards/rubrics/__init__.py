"""Rubrics: criteria with signed weights, kept by prompt, written by hand or by the judge."""
