"""Label a folder: what to ask for next, what the head thinks by now, how good it is, and a page to answer on."""

from __future__ import annotations

from .answers import Answer, AnswerFile
from .session import Estimate, LabelSession, Question
from .strategies import STRATEGIES

__all__ = ["STRATEGIES", "Answer", "AnswerFile", "Estimate", "LabelSession", "Question"]
