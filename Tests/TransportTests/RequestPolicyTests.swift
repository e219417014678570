/// Back-off without a clock, and addresses.

import Primitives
import TestSupport
import Testing
import Transport

@Suite struct RequestPolicyTests {
    @Test func waitsAreDrawnFromZeroToADoublingBoundWithACap() {
        let policy = RequestPolicy(firstDelaySeconds: 1, largestDelaySeconds: 10)
        var generator = SeededGenerator(seed: 3, purpose: "back-off")
        var largest = [Double](repeating: 0, count: 70)
        var smallest = [Double](repeating: .infinity, count: 70)
        for _ in 0..<500 {
            var failures = RequestPolicy.Failures()
            for turn in 0..<70 {
                guard let delay = policy.delay(after: &failures, now: 0, using: &generator) else {
                    Issue.record("gave up without a limit")
                    return
                }
                largest[turn] = max(largest[turn], delay)
                smallest[turn] = min(smallest[turn], delay)
            }
            #expect(failures.count == 70)
        }
        for turn in 0..<70 {
            let bound = min(10, Double(1 << min(turn, 40)))
            #expect(largest[turn] < bound && largest[turn] > 0.9 * bound)
            #expect(smallest[turn] >= 0 && smallest[turn] < 0.1 * bound)
        }
    }

    @Test func whatTheOtherSideAsksForIsTheLeastWait() {
        var generator = SeededGenerator(seed: 4, purpose: "back-off")
        var failures = RequestPolicy.Failures()
        for _ in 0..<1000 {
            let delay = RequestPolicy().delay(after: &failures, now: 0, askedToWaitSeconds: 8, using: &generator)
            #expect(delay! >= 8 && delay! < 10)
        }
    }

    @Test func itGivesUpWhenTheTimeIsUp() {
        let policy = RequestPolicy(firstDelaySeconds: 1, largestDelaySeconds: 1, giveUpAfterSeconds: 100)
        var generator = SeededGenerator(seed: 5, purpose: "back-off")
        var failures = RequestPolicy.Failures()
        #expect(policy.delay(after: &failures, now: 1000, using: &generator) != nil)
        #expect(policy.delay(after: &failures, now: 1098.9, using: &generator) != nil)
        #expect(policy.delay(after: &failures, now: 1100.1, using: &generator) == nil)
    }

    @Test func aTransientFailureIsTriedAgainAndAPermanentOneIsNot() throws {
        var generator = SeededGenerator(seed: 6, purpose: "back-off")
        var clock = 0.0
        var calls = 0
        func wait(_ seconds: Double, _ reason: TransportError) -> Bool {
            clock += seconds
            return true
        }
        let value = try RequestPolicy().perform(using: &generator, now: { clock }, wait: wait) {
            () throws(TransportError) -> Int in
            calls += 1
            if calls < 4 { throw .connectionLost(address: "a") }
            return 7
        }
        #expect(value == 7 && calls == 4)
        calls = 0
        #expect(throws: TransportError.tooLarge(count: 2, limit: 1)) {
            try RequestPolicy().perform(using: &generator, now: { clock }, wait: wait) { () throws(TransportError) -> Int in
                calls += 1
                throw .tooLarge(count: 2, limit: 1)
            }
        }
        #expect(calls == 1)
        #expect(throws: TransportError.cancelled) {
            try RequestPolicy().perform(using: &generator, now: { clock }, wait: { _, _ in false }) {
                () throws(TransportError) -> Int in
                throw .connectionLost(address: "a")
            }
        }
        let limited = RequestPolicy(firstDelaySeconds: 1, largestDelaySeconds: 1, giveUpAfterSeconds: 5)
        #expect(throws: TransportError.connectionLost(address: "a")) {
            try limited.perform(using: &generator, now: { clock }, wait: wait) { () throws(TransportError) -> Int in
                throw .connectionLost(address: "a")
            }
        }
    }
}

@Suite struct TransportAddressTests {
    @Test func goodAddressesAreRead() throws {
        #expect(try TransportAddress(dialing: "tcp://127.0.0.1:7400") == TransportAddress(host: "127.0.0.1", port: 7400))
        #expect(try TransportAddress(dialing: "tcp://host.example:1").description == "tcp://host.example:1")
        #expect(try TransportAddress(dialing: "tcp://[::1]:65535") == TransportAddress(host: "::1", port: 65535))
        #expect(try TransportAddress(dialing: "tcp://[::1]:65535").description == "tcp://[::1]:65535")
        #expect(try TransportAddress(listening: "tcp://*:0") == TransportAddress(host: "0.0.0.0", port: 0))
    }

    @Test(arguments: [
        "", "127.0.0.1:7400", "tcp:/127.0.0.1:7400", "tcp://", "tcp://:7400", "tcp://host", "tcp://host:", "tcp://host:port",
        "tcp://host:65536", "tcp://host:-1", "tcp://host:+1", "tcp://host:7400/path", "tcp://a b:1", "tcp://::1:7400",
        "tcp://[host]:1", "tcp://[::1:1", "udp://host:1", "tcp://höst:1", "tcp://host:٧", "tls+tcp://host:1",
    ])
    func badAddressesAreRefusedWithTheTextInTheMessage(_ text: String) {
        do throws(Failure) {
            _ = try TransportAddress(dialing: text)
            Issue.record("\(text) was accepted")
        } catch {
            #expect(error.status == .usage)
            #expect(error.message.contains(text) && error.message.contains("tcp://HOST:PORT"))
        }
    }

    @Test func whatComesLaterIsRefusedByName() {
        for scheme in ["tls+tcp", "ws", "ipc"] {
            do throws(Failure) {
                _ = try TransportAddress(dialing: "\(scheme)://host:1")
                Issue.record("\(scheme) was accepted")
            } catch {
                #expect(error.message.contains("\(scheme) is not supported in this release"))
            }
        }
        #expect(throws: Failure.self) { _ = try TransportAddress(dialing: "tcp://host:0") }
        #expect(throws: Failure.self) { _ = try TransportAddress(dialing: "tcp://0.0.0.0:1") }
    }
}
