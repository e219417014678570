// Wire.
