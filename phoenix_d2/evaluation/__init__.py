"""Evaluation of masks. Importing the folder imports no evaluator, so that scoring files needs no Detectron2."""
