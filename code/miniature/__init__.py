"""The miniature world: pictures, EEG and models small enough for two processor cores."""
