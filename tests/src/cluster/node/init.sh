#!/bin/sh
# Process 1 of a node, in mount, UTS, IPC, PID and network namespaces of its own. Makes the file systems that a node has,
# says so, and reaps what its daemons leave.
#   $1  the node's name
#   $2  a directory whose files become the node's
#   $3  a file to write `ready` to when everything is mounted
set -e
# Opened while the machine's /run is in sight.
exec 3>"$3"
hostname "$1"

# All that the node writes is in memory and goes with its mount namespace: nothing reaches the machine's file systems.
mount -t tmpfs -o mode=0755 node /mnt
mkdir -p /mnt/run/lock /mnt/run/netns /mnt/kubelet /mnt/containerd /mnt/cgroup
cp -a "$2" /mnt/run/node

# sysfs as this network namespace sees it, with the machine's cgroups carried over.
mount --rbind /sys/fs/cgroup /mnt/cgroup
mount -t sysfs sysfs /sys
mount --rbind /mnt/cgroup /sys/fs/cgroup
umount -l /mnt/cgroup
mount -t bpf bpf /sys/fs/bpf

for directory in etc opt var; do
    mkdir -p "/mnt/$directory/upper" "/mnt/$directory/work"
    mount -t overlay -o "lowerdir=/$directory,upperdir=/mnt/$directory/upper,workdir=/mnt/$directory/work" overlay "/$directory"
done
# The machine's own network configurations and plugins are not the node's.
rm -rf /etc/cni /opt/cni /var/lib/cni
mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/kubelet /var/lib/containerd /var/log/pods /var/log/containers
# An overlay cannot lie on an overlay, and containerd makes them below its directory.
mount --bind /mnt/kubelet /var/lib/kubelet
mount --bind /mnt/containerd /var/lib/containerd

# The kubelet wants these, which are the whole machine's, to have certain values: it is shown them, and writes nothing.
show() {
    shown="/mnt/$(echo "$1" | tr / _)"
    echo "$2" >"$shown"
    mount --bind "$shown" "/proc/sys/$1"
}
show vm/overcommit_memory 1
show kernel/panic 10
show kernel/panic_on_oops 1
show kernel/keys/root_maxkeys 1000000
show kernel/keys/root_maxbytes 25000000

mount --bind /mnt/run /run
mount --make-rshared /
echo ready >&3
exec 3>&-
while :; do
    wait || :
    sleep 1
done
