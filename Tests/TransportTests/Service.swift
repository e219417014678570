/// A listener that runs on a thread of its own until the test is over.

import Foundation
import Primitives
import Transport

final class Service: Sendable {
    let listener: CoordinatorListener
    private let ended = DispatchSemaphore(value: 0)

    init(
        port: UInt16 = 0, tick: (@Sendable () -> Void)? = nil, handler: @escaping @Sendable ([UInt8]) -> [UInt8]
    ) throws {
        listener = try CoordinatorListener(listening: TransportAddress(host: "127.0.0.1", port: port))
        Thread.detachNewThread { [listener, ended] in
            try? listener.run(tickSeconds: 0.02, tick: tick, handler: handler)
            ended.signal()
        }
    }

    var address: TransportAddress { listener.address }

    /// Returns when the port is free again.
    func stop() {
        listener.stop()
        ended.wait()
        listener.close()
    }

    func waitForEnd(seconds: Double) -> Bool { ended.wait(timeout: .now() + seconds) == .success }
}
