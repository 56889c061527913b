"""Data sets: feature folders, annotations, their check, and synthetic data. NumPy only; nothing here imports torch."""

from case.data.annotations import GroundTruth, VideoTruth, load_ground_truth, to_json
from case.data.check import check_folder
from case.data.check_report import Finding, Report, SplitSummary
from case.data.detections import DetectionTable, load_detections
from case.data.features import FeatureError
from case.data.files import atomic_write, load_json, make_folder, remove_unfinished, save_json
from case.data.folder import FeatureFolder, LoadedSplit, load_split, open_folder, split_bytes
from case.data.synthetic import DEMO, THUMOS14_SIZED, SyntheticConfig, SyntheticData, generate, iter_videos, write
from case.data.wtalc import load_ambiguous, load_wtalc

__all__ = [
    "DEMO",
    "THUMOS14_SIZED",
    "DetectionTable",
    "FeatureError",
    "FeatureFolder",
    "Finding",
    "GroundTruth",
    "LoadedSplit",
    "Report",
    "SplitSummary",
    "SyntheticConfig",
    "SyntheticData",
    "VideoTruth",
    "atomic_write",
    "check_folder",
    "generate",
    "iter_videos",
    "load_ambiguous",
    "load_detections",
    "load_ground_truth",
    "load_json",
    "load_split",
    "load_wtalc",
    "make_folder",
    "open_folder",
    "remove_unfinished",
    "save_json",
    "split_bytes",
    "to_json",
    "write",
]
