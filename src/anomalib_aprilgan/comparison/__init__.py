# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Side by side: any of anomalib's models on any of its image datamodules, one row per run, and a report."""
