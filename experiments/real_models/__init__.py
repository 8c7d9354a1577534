"""Small models as people write them, from plan to student."""
