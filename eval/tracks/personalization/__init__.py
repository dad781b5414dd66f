"""The personalization arena: every fine-tuning method on the same subjects, prompts and scores (eval.personalize)."""
