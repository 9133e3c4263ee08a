#!/bin/sh
# The first process of a machine with the kernel that is tried: two endpoints on a bridge, somebody outside, and
# netpol between them. It says which sentence did not hold, or that all did.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup

say() {
    echo "guest: $*"
}

finish() {
    say "$*"
    # what was said must be out before the machine is gone
    sleep 1
    poweroff -f
}

holds() {
    what=$1
    shift
    if "$@" >/tmp/said 2>&1; then say "holds: $what"; else tail -n 40 /tmp/said; finish "failed: $what"; fi
}

fails() {
    what=$1
    shift
    if "$@" >/tmp/said 2>&1; then finish "failed: $what"; else say "holds: $what"; fi
}

for module in /modules/*; do
    insmod "$module"
done
mkdir -p /run/netns /tmp
ip link set lo up
ip link add br0 type bridge
ip addr add 10.0.0.1/16 dev br0
ip link set br0 up
for name in a b outside; do
    ip netns add $name
    ip link add v-$name type veth peer name eth0 netns $name
    ip link set v-$name up
    ip -n $name link set lo up
    ip -n $name link set eth0 up
done
for name in a b; do
    ip link set v-$name master br0
done
ip -n a addr add 10.0.0.10/16 dev eth0
ip -n b addr add 10.0.0.20/16 dev eth0
ip -n a route add default via 10.0.0.1
ip -n b route add default via 10.0.0.1
ip addr add 192.0.2.1/24 dev v-outside
ip -n outside addr add 192.0.2.9/24 dev eth0
echo 1 >/proc/sys/net/ipv4/ip_forward

cat >/tmp/guest.yaml <<'DOCUMENTS'
apiVersion: netpol.dev/v1
kind: Endpoint
metadata: {name: a, labels: {app: a}}
spec: {netns: a}
---
apiVersion: netpol.dev/v1
kind: Endpoint
metadata: {name: b, labels: {app: b}}
spec: {netns: b}
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec:
  type: NodePort
  selector: {app: b}
  ports: [{port: 8080, nodePort: 8000}]
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.0.0.0/16, natOutgoing: true}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: b}
spec:
  podSelector: {matchLabels: {app: b}}
  policyTypes: [Ingress]
  ingress: [{ports: [{port: 8080}]}]
DOCUMENTS

asked() {
    (sleep 1; echo) | ip netns exec "$1" nc -w 10 "$2" "$3" | grep -q hello
}

say "kernel $(uname -r)"
holds "it loads" netpol load --uplink v-outside /tmp/guest.yaml
holds "it is enforced" netpol status
(while ip netns exec b nc -l -p 8080 -e echo hello; do :; done) &
sleep 1
holds "what a policy allows passes" asked a 10.0.0.20 8080
fails "what no rule allows is dropped" ip netns exec a ping -c 1 -W 2 10.0.0.20
holds "a pool reaches the outside" ip netns exec a ping -c 2 -W 5 192.0.2.9
holds "a published port leads to its backend" asked outside 192.0.2.1 8000
holds "drops have a reason and a counter" sh -c 'netpol status | grep -q policy-ingress'
holds "a packet of trace is judged as by the rules" netpol trace --from a --to b --port 8080/tcp
holds "it unloads" netpol unload
finish "all held"
