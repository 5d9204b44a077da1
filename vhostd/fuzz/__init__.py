"""Cases of hostile front-ends and drivers: made from a seed, run against any back-end, and minimised."""
