#!/bin/sh
# A Wayland compositor of wlroots in the guest, which shows one program: cage.sh PROGRAM [ARGUMENTS]
set -e
export XDG_RUNTIME_DIR=/run/cage
mkdir -p "$XDG_RUNTIME_DIR" /tmp/.X11-unix
chown nobody "$XDG_RUNTIME_DIR"
chmod 1777 /tmp/.X11-unix
chmod 666 /dev/dri/renderD*
# Cage does not start without it. It is for clients of X11, of which there are none here.
[ -e /usr/bin/Xwayland ] || ln -s /bin/true /usr/bin/Xwayland
export WLR_BACKENDS=drm WLR_LIBINPUT_NO_DEVICES=1 WLR_RENDERER=gles2 LIBSEAT_BACKEND=builtin SEATD_VTBOUND=0
# It begins with the rights of root, opens the display, and refuses to keep them.
exec setpriv --ruid nobody --rgid nogroup --clear-groups cage -d -- "$@"
