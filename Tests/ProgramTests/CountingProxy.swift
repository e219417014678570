/// A TCP proxy between clients and a coordinator that keeps every byte: what a packet counter would see.

import Glibc
import Synchronization

final class CountingProxy: Sendable {
    /// Bytes of one connection, each way.
    struct Connection: Sendable {
        /// From the client that dialed.
        var up: [UInt8] = []
        var down: [UInt8] = []
    }

    let port: UInt16
    private let listener: Int32
    private let target: UInt16
    private let state = Mutex<(connections: [Connection], sockets: [Int32], isClosed: Bool)>(([], [], false))

    /// Listens on a free port of the loopback interface and passes on to `target`.
    init(to target: UInt16) throws {
        self.target = target
        listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = Self.loopback(0)
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let descriptor = listener
        let code = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, size) | listen(descriptor, 16) | getsockname(descriptor, $0, &size)
            }
        }
        guard code == 0 else { throw ProxyFailure() }
        port = UInt16(bigEndian: address.sin_port)
        Self.detach { [self] in accept() }
    }

    struct ProxyFailure: Error {}

    /// Ends all connections: everything that was passed on.
    func close() -> [Connection] {
        let (connections, sockets) = state.withLock { state in
            state.isClosed = true
            return (state.connections, state.sockets)
        }
        for descriptor in sockets + [listener] { shutdown(descriptor, Int32(SHUT_RDWR)) }
        return connections
    }

    private func accept() {
        while true {
            let near = Glibc.accept(listener, nil, nil)
            guard near >= 0 else { return }
            let far = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            var address = Self.loopback(target)
            let connected = withUnsafePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    connect(far, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
            let index = state.withLock { state -> Int? in
                guard connected == 0, !state.isClosed else { return nil }
                state.connections.append(Connection())
                state.sockets += [near, far]
                return state.connections.count - 1
            }
            guard let index else {
                Glibc.close(near)
                Glibc.close(far)
                continue
            }
            Self.detach { [self] in pass(from: near, to: far) { connection, bytes in connection[index].up += bytes } }
            Self.detach { [self] in pass(from: far, to: near) { connection, bytes in connection[index].down += bytes } }
        }
    }

    private func pass(from source: Int32, to sink: Int32, count: (inout [Connection], ArraySlice<UInt8>) -> Void) {
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            let received = recv(source, &buffer, buffer.count, 0)
            guard received > 0 else { break }
            state.withLock { count(&$0.connections, buffer[..<received]) }
            var sent = 0
            while sent < received {
                let written = buffer.withUnsafeBytes { send(sink, $0.baseAddress! + sent, received - sent, Int32(MSG_NOSIGNAL)) }
                guard written > 0 else { return }
                sent += written
            }
        }
        shutdown(sink, Int32(SHUT_WR))
    }

    private static func loopback(_ port: UInt16) -> sockaddr_in {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        return address
    }

    private static func detach(_ body: @escaping @Sendable () -> Void) { Thread(body).detach() }
}
