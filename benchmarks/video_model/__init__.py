"""Does the video model read the codes? Oracle codes admit a codec and a model; learned codes go through all phases."""
