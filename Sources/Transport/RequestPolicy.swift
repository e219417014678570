/// When to ask again: exponential back-off with full jitter and a cap, without a clock or generator of its own.
///
/// "Full jitter" draws the whole wait at random, so that clients cut off together do not come back together
/// (Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture Blog).

public struct RequestPolicy: Equatable, Sendable {
    /// The largest wait after the first failure.
    public var firstDelaySeconds: Double
    /// The largest wait after any failure.
    public var largestDelaySeconds: Double
    /// Time since the first failure after which to give up; nil for never.
    public var giveUpAfterSeconds: Double?

    public init(firstDelaySeconds: Double = 0.5, largestDelaySeconds: Double = 30, giveUpAfterSeconds: Double? = nil) {
        precondition(firstDelaySeconds > 0 && largestDelaySeconds >= firstDelaySeconds, "a wait is a positive time")
        self.firstDelaySeconds = firstDelaySeconds
        self.largestDelaySeconds = largestDelaySeconds
        self.giveUpAfterSeconds = giveUpAfterSeconds
    }

    /// The failures of one request, or of a row of them with no success between.
    public struct Failures: Equatable, Sendable {
        public fileprivate(set) var count = 0
        fileprivate var firstAt = 0.0

        public init() {}
    }

    /// Notes a failure and says how long to wait before asking again, or nil to give up.
    ///
    /// - Parameters:
    ///   - failures: of this request so far; a new value after a success
    ///   - now: seconds of any clock that does not go back
    ///   - askedToWaitSeconds: what the other side wants; the wait is this and up to a quarter more
    public func delay(
        after failures: inout Failures, now: Double, askedToWaitSeconds: Double? = nil,
        using generator: inout some RandomNumberGenerator
    ) -> Double? {
        if failures.count == 0 { failures.firstAt = now }
        failures.count += 1
        // 2^-53 steps in [0, 1).
        let unit = Double(generator.next() >> 11) * 0x1p-53
        // 60 doublings are beyond every cap.
        let doublings = min(failures.count - 1, 60)
        let delay =
            if let asked = askedToWaitSeconds {
                min(max(0, asked), 86_400) * (1 + unit / 4)
            } else {
                min(largestDelaySeconds, firstDelaySeconds * Double(1 << doublings)) * unit
            }
        if let limit = giveUpAfterSeconds, now + delay - failures.firstAt > limit { return nil }
        return delay
    }

    /// Calls `body` until it succeeds, fails for good, the policy gives up, or `wait` says to stop.
    ///
    /// - Parameters:
    ///   - now: seconds of any clock that does not go back
    ///   - wait: waits that many seconds, having heard why; false to stop
    /// - Throws: the last error of `body`; `.cancelled` if `wait` said to stop
    public func perform<T>(
        using generator: inout some RandomNumberGenerator, now: () -> Double,
        wait: (_ seconds: Double, _ reason: TransportError) -> Bool, _ body: () throws(TransportError) -> T
    ) throws(TransportError) -> T {
        var failures = Failures()
        while true {
            let reason: TransportError
            do throws(TransportError) {
                return try body()
            } catch {
                reason = error
            }
            guard reason.isTransient, let delay = delay(after: &failures, now: now(), using: &generator) else { throw reason }
            guard wait(delay, reason) else { throw .cancelled }
        }
    }
}
