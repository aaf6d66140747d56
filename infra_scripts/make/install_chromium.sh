#!/bin/sh
# Finds Chromium for the browser tests, installs Debian's, or prints what to do. Prints its path.
# CHROMIUM names another binary (Chrome works too).
set -eu

find_chromium() {
    for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
        if [ -n "$name" ] && command -v "$name" >/dev/null 2>&1; then
            command -v "$name"
            return 0
        fi
    done
    return 1
}

give_up() {
    {
        echo "install_chromium: $1"
        echo "The browser tests need Chromium. Do one of these, then run the command again:"
        echo "  Debian:        sudo apt-get install chromium"
        echo "  Fedora:        sudo dnf install chromium"
        echo "  macOS:         brew install --cask chromium"
        echo "  anywhere else: install Chromium or Chrome, then set CHROMIUM to the path of its binary"
    } >&2
    exit 1
}

if [ -n "${CHROMIUM:-}" ] && ! command -v "$CHROMIUM" >/dev/null 2>&1; then
    give_up "CHROMIUM is $CHROMIUM, but there is no such program."
fi
find_chromium && exit 0

command -v apt-get >/dev/null 2>&1 || give_up "there is no Chromium here, and no apt-get to install it with."
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || give_up "there is no Chromium here, and installing it needs root or sudo."
    as_root="sudo"
fi
echo "Installing Chromium with apt-get" >&2
install() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >&2; }
# A machine with an outdated package list may not find the current package: update the list and try again.
install || { $as_root apt-get update -qq >&2 && install; } || give_up "apt-get could not install chromium."
find_chromium || give_up "apt-get installed chromium, but there is still no such program."
