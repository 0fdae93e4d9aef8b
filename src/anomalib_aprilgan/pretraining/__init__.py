# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Trains the embedded CLIP and its adapters from scratch: `anomalib-aprilgan pretrain FOLDER`."""
