#!/usr/bin/env bash
# Faults of all kinds for a minute, always the same ones: every acknowledged write is there in the end, through every sheep, and all copies are
# alike. For longer, or with other faults: script/torture.
exec "$(dirname "$0")/../torture" 0.4 205
