/// Error feedback: the arithmetic, and a federation that needs it.

import Adapters
import Primitives
import TestSupport
import Testing
import UpdateCodec

@Suite struct ErrorFeedbackTests {
    @Test func whatIsLeftOutIsAddedToTheNextUpdate() throws {
        let layout = Samples.layout([3])
        let update = AdapterState(layout: layout, values: [1, -2, 0.5])
        #expect(ErrorFeedback.corrected(update, residual: nil) == update)
        let decoded = AdapterState(layout: layout, values: [0, -2.5, 0])
        let residual = ErrorFeedback.residual(corrected: update, decoded: decoded)
        #expect(residual.values == [1, 0.5, 0.5])
        #expect(ErrorFeedback.corrected(update, residual: residual).values == [2, -1.5, 1])
        #expect(
            ErrorFeedback.corrected(update, residual: residual, decay: 0.5, skippedRounds: 2).values == [1.25, -1.875, 0.625])
        #expect(ErrorFeedback.corrected(update, residual: residual, decay: 0.5).values == [2, -1.5, 1])
        #expect(ErrorFeedback.corrected(update, residual: residual, decay: 0, skippedRounds: 1) == update)
    }

    /// Nothing is lost: everything that was to be sent has been decoded, or is in the residual.
    @Test func sentAndKeptAddUpToWhatWasToBeSent() throws {
        let layout = Samples.layout([300, 45])
        for codec in Samples.codecs where codec.allowsErrorFeedback {
            var residual: AdapterState?
            var wanted = [Double](repeating: 0, count: layout.parameterCount)
            var sent = wanted
            for round in 1...8 as ClosedRange<UInt64> {
                let update = Samples.state(layout, seed: round)
                let corrected = ErrorFeedback.corrected(update, residual: residual)
                let decoded = try Samples.roundTrip(corrected, codec, seed: round)
                residual = ErrorFeedback.residual(corrected: corrected, decoded: decoded)
                for index in wanted.indices {
                    wanted[index] += Double(update.values[index])
                    sent[index] += Double(decoded.values[index])
                }
            }
            let total = zip(sent, residual?.values ?? []).map { $0 + Double($1) }
            #expect(Closeness(total, wanted).isWithin(ofLargest: 1e-6), "\(codec)")
        }
    }
}

/// Ten clients, each with a quadratic loss of its own: client c's is sum over i of h_ci (x_i - m_ci)^2 / 2.
///
/// - d = 2000 values in tensors of 1024, 640 and 336.
/// - Curvatures h_ci uniform in (0.1, 2); minima m_ci = o_i + n_ci with o_i uniform in (-1, 1), the same for all clients, and
///   n_ci uniform in (-2, 2). The optimum of the mean loss is x_i = sum_c h_ci m_ci / sum_c h_ci.
/// - 400 rounds from x = 0; in each every client takes 5 gradient steps of size 0.0025 from x, and x moves by the mean of
///   what the clients' updates decode to (ternary, 10 % of each tensor).
/// - The distance is |x - optimum| / |optimum|, so that it begins at 1.
private struct QuadraticFederation {
    static let sizes = [1024, 640, 336]
    static let clients = 10
    static let localSteps = 5
    static let stepSize: Float = 0.0025

    let layout = Samples.layout(sizes)
    private(set) var curvatures: [[Float]] = []
    private(set) var minima: [[Float]] = []
    private(set) var optimum: [Double] = []

    init(seed: UInt64) {
        var generator = SeededGenerator(seed: seed, purpose: "quadratic federation")
        let count = layout.parameterCount
        let shared = (0..<count).map { _ in generator.symmetric(1) }
        for _ in 0..<Self.clients {
            curvatures.append((0..<count).map { _ in 1.05 + generator.symmetric(0.95) })
            minima.append(shared.map { $0 + generator.symmetric(2) })
        }
        optimum = (0..<count).map { index in
            let weight = (0..<Self.clients).reduce(0.0) { $0 + Double(curvatures[$1][index]) }
            return (0..<Self.clients).reduce(0.0) { $0 + Double(curvatures[$1][index]) * Double(minima[$1][index]) } / weight
        }
    }

    /// Distances after half of the rounds and after all.
    func distances(codec: UpdateCodec?, feedback: Bool, rounds: Int = 400) throws -> (half: Double, end: Double) {
        var x = [Float](repeating: 0, count: layout.parameterCount)
        var residuals = [AdapterState?](repeating: nil, count: Self.clients)
        var half = 0.0
        for round in 1...rounds {
            var sum = [Float](repeating: 0, count: x.count)
            for client in 0..<Self.clients {
                var y = x
                for _ in 0..<Self.localSteps {
                    for index in y.indices {
                        y[index] -= Self.stepSize * curvatures[client][index] * (y[index] - minima[client][index])
                    }
                }
                var update = AdapterState(layout: layout, values: zip(y, x).map { $0 - $1 })
                if let codec {
                    let corrected = feedback ? ErrorFeedback.corrected(update, residual: residuals[client]) : update
                    update = try EncodedState.decode(
                        EncodedState.encode(corrected, codec: codec), layout: layout, codecs: [codec])
                    residuals[client] = ErrorFeedback.residual(corrected: corrected, decoded: update)
                }
                for index in sum.indices { sum[index] += update.values[index] }
            }
            for index in x.indices { x[index] += sum[index] / Float(Self.clients) }
            if round == rounds / 2 { half = distance(x) }
        }
        return (half, distance(x))
    }

    private func distance(_ x: [Float]) -> Double {
        let error = zip(x, optimum).reduce(0.0) { $0 + (Double($1.0) - $1.1) * (Double($1.0) - $1.1) }
        return (error / optimum.reduce(0.0) { $0 + $1 * $1 }).squareRoot()
    }
}

@Suite struct QuadraticFederationTests {
    @Test(arguments: [1, 2, 3] as [UInt64])
    func feedbackReachesWhatCompressionAloneCannot(seed: UInt64) throws {
        let federation = QuadraticFederation(seed: seed)
        let ternary = UpdateCodec.compeft(density: 0.1)
        let uncompressed = try federation.distances(codec: nil, feedback: false).end
        let with = try federation.distances(codec: ternary, feedback: true).end
        let without = try federation.distances(codec: ternary, feedback: false).end
        #expect(with <= 3 * uncompressed, "with \(with), uncompressed \(uncompressed)")
        #expect(with <= without / 3, "with \(with), without \(without)")
    }

    /// alpha = 6 is more than twice the mean kept magnitude, 2.06 sigma at 10 %: not a contraction, so that residuals grow.
    @Test(arguments: [1, 2, 3] as [UInt64])
    func feedbackWithTooLargeAScaleDiverges(seed: UInt64) throws {
        let federation = QuadraticFederation(seed: seed)
        let sigma = UpdateCodec.compeft(density: 0.1, scale: .deviations(6))
        #expect(!sigma.allowsErrorFeedback)
        let distances = try federation.distances(codec: sigma, feedback: true)
        #expect(distances.end > 3 && distances.end > distances.half, "\(distances)")
    }
}
