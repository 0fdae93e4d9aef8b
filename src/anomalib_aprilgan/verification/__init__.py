# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Measures the published figures with the real weights and data, and says which of them are met."""
