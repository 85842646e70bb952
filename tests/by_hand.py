"""What a model says of questions and answers, by ``transformers`` alone, in float64."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class ByHand:
    """What a model says of rows, by transformers alone, row by row."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    def logps(self, row, answer):
        """Return the log-probability of each token of an answer and of its end, and the moments."""
        turns = [{"role": "user", "content": row["question"]}]
        prompt = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        start = len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        text = prompt + answer + self.tokenizer.eos_token
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logps = self.lm(ids).logits[0, start - 1 : -1].log_softmax(-1)
        labels = ids[0, start:, None]
        own = logps.gather(-1, labels)[:, 0]
        mean = (logps.exp() * logps).sum(-1)
        deviation = ((logps.exp() * logps**2).sum(-1) - mean**2).sqrt()
        return own.numpy(), ((own - mean) / deviation).numpy()

    def loss(self, row, answer):
        return -float(self.logps(row, answer)[0].mean())

    def losses(self, rows):
        return [self.loss(row, row["answer"]) for row in rows]
