"""What a judge needs: pairs of completions, questions and their answers, and what follows from them."""
