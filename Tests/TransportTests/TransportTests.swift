/// Both ends over real loopback sockets, with peers that misbehave.

import Dispatch
import Foundation
import Primitives
import Synchronization
import TestSupport
import Testing
import Transport
import Wire

@Suite(.serialized) struct TransportTests {
    @Test func aRequestIsAnswered() throws {
        let service = try Service { Array($0.reversed()) }
        defer { service.stop() }
        #expect(service.address.port != 0)
        let connection = try ClientConnection(to: service.address)
        for bytes in [[], [1], [1, 2, 3], (0..<100_000).map { UInt8(truncatingIfNeeded: $0) }] as [[UInt8]] {
            #expect(try connection.request(bytes, timeoutSeconds: 5) == Array(bytes.reversed()))
        }
        connection.close()
        #expect(throws: TransportError.closed) { try connection.request([1], timeoutSeconds: 1) }
    }

    @Test func theHandlerAndTheTickSeeOneCallerAtATime() throws {
        let inside = Atomic<Int>(0)
        let overlaps = Atomic<Int>(0)
        let handled = Atomic<Int>(0)
        let ticks = Atomic<Int>(0)
        @Sendable func guarded() {
            if inside.add(1, ordering: .sequentiallyConsistent).newValue != 1 { overlaps.add(1, ordering: .relaxed) }
            usleep(200)
            inside.subtract(1, ordering: .sequentiallyConsistent)
        }
        let service = try Service(
            tick: {
                guarded()
                ticks.add(1, ordering: .relaxed)
            },
            handler: { bytes in
                guarded()
                handled.add(1, ordering: .relaxed)
                return bytes
            })
        defer { service.stop() }
        // 50 clients at once, 20 requests each, each with its own content.
        let failures = Mutex<[String]>([])
        let address = service.address
        Self.parallel(50) { client in
            do {
                let connection = try ClientConnection(to: address, connectTimeoutSeconds: 30)
                defer { connection.close() }
                for turn in 0..<20 {
                    let bytes = [UInt8](repeating: UInt8(client), count: 1 + turn * 100)
                    let reply = try connection.request(bytes, timeoutSeconds: 30)
                    if reply != bytes { failures.withLock { $0.append("client \(client) got another's reply") } }
                }
            } catch {
                failures.withLock { $0.append("client \(client): \(error)") }
            }
        }
        #expect(failures.withLock { $0 } == [])
        #expect(handled.load(ordering: .relaxed) == 1000)
        #expect(overlaps.load(ordering: .relaxed) == 0)
        #expect(ticks.load(ordering: .relaxed) > 0)
    }

    @Test func aRequestAboveTheLimitIsNotSent() throws {
        let service = try Service { $0 }
        defer { service.stop() }
        let connection = try ClientConnection(to: service.address)
        let large = [UInt8](repeating: 0, count: 4 << 20)
        #expect(throws: TransportError.tooLarge(count: 4 << 20, limit: WireLimits.frameBytes)) {
            try connection.request(large, timeoutSeconds: 5)
        }
        let most = [UInt8](repeating: 1, count: WireLimits.frameBytes)
        #expect(try connection.request(most, timeoutSeconds: 5) == most)
    }

    @Test func aPeerThatSendsFourMebibytesIsCutOffAndOthersAreServed() throws {
        let service = try Service { $0 }
        defer { service.stop() }
        let good = try ClientConnection(to: service.address)
        let rude = try ClientConnection(to: service.address, frameLimit: 8 << 20)
        #expect(throws: TransportError.self) {
            try rude.request([UInt8](repeating: 0, count: 4 << 20), timeoutSeconds: 3)
        }
        #expect(try good.request([1, 2], timeoutSeconds: 5) == [1, 2])
        #expect(try rude.request([3], timeoutSeconds: 10) == [3])
    }

    @Test func aReplyAboveTheLimitBecomesARefusal() throws {
        let service = try Service { _ in [UInt8](repeating: 0, count: 4 << 20) }
        defer { service.stop() }
        let connection = try ClientConnection(to: service.address)
        guard case .refused(let refusal) = try Reply(decoding: connection.request([1], timeoutSeconds: 5)) else {
            Issue.record("not a refusal")
            return
        }
        #expect(refusal.code == .tooLarge)
    }

    @Test func garbageOnThePortLeavesTheServiceAlone() throws {
        let service = try Service { $0 }
        defer { service.stop() }
        let port = service.address.port
        var generator = SeededGenerator(seed: 11, purpose: "garbage")
        // NNG's greeting: zero, "SP", zero, protocol 0x30 (request), zero.
        let greeting: [UInt8] = [0, 0x53, 0x50, 0, 0, 0x30, 0, 0]
        var idle: [RawSocket] = []
        for turn in 0..<120 {
            guard let raw = RawSocket(port: port) else {
                Issue.record("the port does not accept connections any more, at turn \(turn)")
                return
            }
            switch turn % 8 {
            case 0: raw.send(Array("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".utf8))
            case 1: raw.send((0..<generator.integer(below: 200)).map { _ in UInt8(generator.integer(below: 256)) })
            case 2: raw.resetOnClose()
            case 3: raw.send(Array(greeting.prefix(generator.integer(below: 8))))
            case 4:
                // A message of 2^63 bytes, then one that claims 1 GiB.
                raw.send(greeting + [0x7F, 255, 255, 255, 255, 255, 255, 255])
                raw.send([UInt8](repeating: 9, count: 50))
            case 5: raw.send(greeting + [0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3])
            case 6: raw.send(greeting + [0, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3])  // shorter than a request number
            default:
                // Half a message, and then silence.
                raw.send(greeting + [0, 0, 0, 0, 0, 0, 1, 0, 0x80, 0, 0, 1, 5])
                idle.append(raw)
            }
        }
        let connection = try ClientConnection(to: service.address)
        #expect(try connection.request([4, 5, 6], timeoutSeconds: 5) == [4, 5, 6])
        // A message that claims more than the limit is answered by closing the connection.
        guard let claim = RawSocket(port: port) else {
            Issue.record("the port does not accept connections any more")
            return
        }
        claim.send(greeting)
        #expect(claim.receive(8, milliseconds: 3000).count == 8)
        claim.send([0, 0, 0, 0, 0x40, 0, 0, 0])
        let started = ContinuousClock.now
        #expect(claim.receive(1, milliseconds: 5000) == [])
        #expect(ContinuousClock.now - started < .seconds(4))
        #expect(idle.count == 15)
    }

    @Test func aCoordinatorThatIsKilledAndStartedAgainIsFoundAgain() throws {
        let first = try Service { $0 }
        let port = first.address.port
        let connection = try ClientConnection(to: first.address)
        #expect(try connection.request([1], timeoutSeconds: 5) == [1])
        first.stop()
        // Nothing is there: the request ends at its time limit.
        do throws(TransportError) {
            _ = try connection.request([2], timeoutSeconds: 1)
            Issue.record("a reply from nobody")
        } catch {
            #expect(error.isTransient && error.failure.status == .unavailable, "\(error)")
        }
        let second = try Service(port: port) { $0 }
        defer { second.stop() }
        #expect(second.address.port == port)
        var generator = SeededGenerator(seed: 1, purpose: "back-off")
        let reply = try RequestPolicy(firstDelaySeconds: 0.1, largestDelaySeconds: 1, giveUpAfterSeconds: 30).perform(
            using: &generator, now: { ProcessInfo.processInfo.systemUptime },
            wait: { seconds, _ in
                Thread.sleep(forTimeInterval: seconds)
                return true
            }
        ) { () throws(TransportError) in try connection.request([3], timeoutSeconds: 8) }
        #expect(reply == [3])
    }

    @Test func aConnectionThatBreaksBeforeTheReplySaysSoAtOnce() throws {
        let release = DispatchSemaphore(value: 0)
        let service = try Service { bytes in
            release.wait()
            return bytes
        }
        let address = service.address
        let outcome = Mutex<(any Error)?>(nil)
        let done = DispatchSemaphore(value: 0)
        let connection = try ClientConnection(to: address)
        let started = ContinuousClock.now
        Thread.detachNewThread {
            do {
                _ = try connection.request([1], timeoutSeconds: 30)
            } catch {
                outcome.withLock { $0 = error }
            }
            done.signal()
        }
        usleep(300_000)
        // Closing while the handler is busy is what a killed process looks like from outside.
        service.listener.close()
        done.wait()
        #expect(outcome.withLock { $0 } as? TransportError == .connectionLost(address: address.description))
        #expect(ContinuousClock.now - started < .seconds(10))
        release.signal()
        #expect(service.waitForEnd(seconds: 10))
    }

    @Test func aRequestThatTakesTooLongTimesOutAndItsLateReplyIsNobodyElses() throws {
        let service = try Service { bytes in
            if bytes == [1] { usleep(900_000) }
            return bytes
        }
        defer { service.stop() }
        let connection = try ClientConnection(to: service.address)
        #expect(try connection.request([0], timeoutSeconds: 5) == [0])
        #expect(throws: TransportError.timedOut(address: service.address.description, seconds: 0.2)) {
            try connection.request([1], timeoutSeconds: 0.2)
        }
        #expect(try connection.request([2], timeoutSeconds: 20) == [2])
    }

    @Test func aRequestCanBeCancelledFromAnotherThread() throws {
        let service = try Service { bytes in
            if bytes == [1] { usleep(900_000) }
            return bytes
        }
        defer { service.stop() }
        let connection = try ClientConnection(to: service.address)
        Thread.detachNewThread {
            usleep(200_000)
            connection.cancel()
        }
        #expect(throws: TransportError.cancelled) { try connection.request([1], timeoutSeconds: 20) }
        #expect(try connection.request([2], timeoutSeconds: 20) == [2])
    }

    @Test func aPortInUseIsNamedWithWhatToDo() throws {
        let service = try Service { $0 }
        defer { service.stop() }
        do throws(Failure) {
            _ = try CoordinatorListener(listening: service.address)
            Issue.record("two listeners on one port")
        } catch {
            #expect(error.status == .unavailable)
            #expect(error.message.contains(service.address.description))
            #expect(error.message.contains("in use") && error.message.contains("--listen"))
        }
        do throws(Failure) {
            _ = try CoordinatorListener(listening: TransportAddress(host: "192.0.2.1", port: 0))
            Issue.record("listening on somebody else's address")
        } catch {
            #expect(error.status == .unavailable && error.message.contains("192.0.2.1"))
        }
    }

    @Test func aFirstConnectionThatFailsSaysWhy() throws {
        let service = try Service { $0 }
        let address = service.address
        service.stop()
        func reason(_ address: TransportAddress) -> TransportError? {
            do throws(TransportError) {
                _ = try ClientConnection(to: address, connectTimeoutSeconds: 2)
                return nil
            } catch {
                return error
            }
        }
        let refused = reason(address)
        #expect(refused?.description.contains("nothing listens on port \(address.port)") == true)
        #expect(refused?.isTransient == true && refused?.failure.status == .unavailable)
        let unknown = reason(TransportAddress(host: "no-such-host.invalid", port: 1))
        #expect(unknown?.description.contains("no-such-host.invalid") == true)
    }

    @Test func stopFromTheHandlerStillSendsTheReply() throws {
        let box = Mutex<CoordinatorListener?>(nil)
        let service = try Service { bytes in
            box.withLock { $0 }?.stop()
            return bytes
        }
        box.withLock { $0 = service.listener }
        let connection = try ClientConnection(to: service.address)
        #expect(try connection.request([42], timeoutSeconds: 5) == [42])
        #expect(service.waitForEnd(seconds: 5))
        box.withLock { $0 = nil }
        service.listener.close()
    }

    /// 64 MiB down and 64 MiB up in chunk messages, decoded and encoded on both sides: far above any uplink.
    @Test func chunksTravelFasterThanAnyNetworkBetweenSites() throws {
        let size = WireLimits.chunkBytes
        let count = 256
        let digest = Digest(of: [1])
        let blob = (0..<size).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        let service = try Service { bytes in
            switch try? Request(decoding: bytes) {
            case .fetchChunk(let request):
                Reply.chunk(Chunk(digest: digest, index: request.index, count: UInt32(count), bytes: blob)).encoded()
            case .uploadChunk(let chunk):
                Reply.chunkReceived(
                    ChunkReceived(digest: chunk.digest, index: chunk.index)
                ).encoded()
            default: Reply.refused(Refusal(code: .badMessage, message: "")).encoded()
            }
        }
        defer { service.stop() }
        let connection = try ClientConnection(to: service.address)
        let started = ContinuousClock.now
        for index in 0..<count {
            let request = Request.fetchChunk(FetchChunk(session: 1, digest: digest, index: UInt32(index)))
            guard case .chunk(let chunk) = try Reply(decoding: connection.request(request.encoded(), timeoutSeconds: 10)) else {
                Issue.record("no chunk \(index)")
                return
            }
            if chunk.index != index || chunk.bytes != blob { Issue.record("chunk \(index) is not what was sent") }
        }
        for index in 0..<count {
            let request = Request.uploadChunk(
                UploadChunk(
                    session: 1, kind: .update, round: 1, digest: digest, index: UInt32(index), count: UInt32(count),
                    totalBytes: UInt64(count * size), bytes: blob))
            let reply = try Reply(decoding: connection.request(request.encoded(), timeoutSeconds: 10))
            #expect(reply == .chunkReceived(ChunkReceived(digest: digest, index: UInt32(index))))
        }
        let seconds = (ContinuousClock.now - started) / .seconds(1)
        // Loopback does several hundred MB/s; 20 leaves room for a busy machine and still shows a stall.
        #expect(Double(2 * count * size) / seconds > 20e6, "\(seconds) s for 128 MiB")
    }

    static func parallel(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
        let done = DispatchSemaphore(value: 0)
        for index in 0..<count {
            Thread.detachNewThread {
                body(index)
                done.signal()
            }
        }
        for _ in 0..<count { done.wait() }
    }
}
