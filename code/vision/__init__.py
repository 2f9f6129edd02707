"""Frozen networks that look at pictures: CLIP, classifiers, feature networks, and a cache of what they say."""
