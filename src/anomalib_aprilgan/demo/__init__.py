# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The demonstration of the embedded CLIP, and the generated sample data."""
