"""The trainings of the picturebook's models, one file per stage, each with its loop written out."""
