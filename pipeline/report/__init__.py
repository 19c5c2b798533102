"""How results are shown: report, gallery, dataset page, contact sheets."""
