"""Experts and features held against each other: pairs, sets, predictions, carriers of topics."""
