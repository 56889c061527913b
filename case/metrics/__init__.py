"""How good detections are (METHOD.md, mAP and after): mAP, average recall, kinds of errors. numpy in, numpy out.

Knows neither the method nor torch. The matching behind all of it is C++ where the native module is there
(``csrc/map.cpp``), else ``case.metrics.reference``; both give the same numbers.
"""

from case.metrics.arrays import Instances, Problem, pose, pose_arrays, truth_instances
from case.metrics.diagnosis import ERRORS, Diagnosis, diagnose
from case.metrics.mean_ap import MeanAP, average_precision, evaluate, mean_ap, parse_tiou, score
from case.metrics.proposals import AverageRecall, average_recall
from case.metrics.rules import Rules

__all__ = [
    "ERRORS",
    "AverageRecall",
    "Diagnosis",
    "Instances",
    "MeanAP",
    "Problem",
    "Rules",
    "average_precision",
    "average_recall",
    "diagnose",
    "evaluate",
    "mean_ap",
    "parse_tiou",
    "pose",
    "pose_arrays",
    "score",
    "truth_instances",
]
