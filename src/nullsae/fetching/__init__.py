"""Everything that a study reads from hubs, downloaded ahead, for machines without network."""
