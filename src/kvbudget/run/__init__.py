"""One measurement: a cell, a calibration job, a bench; what it records and how it resumes."""
