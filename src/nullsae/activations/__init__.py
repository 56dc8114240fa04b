"""Activations: captured once per variant for all sites, stored in checked shards."""
