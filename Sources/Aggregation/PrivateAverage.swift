/// Federated averaging under client-level differential privacy: global + (sum of clipped updates + noise) / expected clients
/// (McMahan et al. 2018, arXiv:1710.06963, algorithm 1; adaptive clip after Andrew et al. 2021, arXiv:1905.03871).
///
/// Every client counts alike, whatever it says of itself; the denominator is fixed before the run; noise is for the full clip
/// however many report, and for none as well. So one client's presence changes the sum by at most the clip.

import Adapters
import Plan
import Primitives
import Privacy

public struct PrivateAverage: Aggregator {
    private let global: AdapterState
    private let expectedClients: Double
    private let clip: Double
    private let noiseMultiplier: Double
    private let adaptation: FederationPlan.ClipAdaptation?
    private let key: NoiseKey
    private var sums: [Double]
    /// Contributions whose norm was within the clip.
    private var within = 0
    private var count = 0
    private var admission = Admission()
    /// The clip for the next round, once finished.
    public private(set) var nextClip: Double

    /// - Parameters:
    ///   - global: the state that the clients were given; its layout is the layout of every contribution
    ///   - expectedClients: the denominator: sampling rate x enrolled clients
    ///   - clip: the largest Euclidean norm of an update, over all its tensors
    ///   - noiseMultiplier: of the whole round; where the clip adapts, its count takes a share
    ///   - key: of this round
    public init(
        onto global: AdapterState, expectedClients: Double, clip: Double, noiseMultiplier: Double,
        adaptation: FederationPlan.ClipAdaptation?,
        key: NoiseKey
    ) {
        self.global = global
        self.expectedClients = expectedClients
        self.clip = clip
        self.noiseMultiplier = adaptation?.sumNoiseMultiplier ?? noiseMultiplier
        self.adaptation = adaptation
        self.key = key
        sums = [Double](repeating: 0, count: global.values.count)
        nextClip = clip
    }

    public mutating func add(client: String, weight: Double, state: AdapterState) throws(AggregationError) {
        try admission.check(client: client, weight: weight)
        try Admission.checkLayout(state.layout, expected: global.layout, client: client)
        try Admission.checkFinite(state, client: client)
        admission.admit(client: client, weight: weight)
        let norm = state.values.reduce(0.0) { $0 + Double($1) * Double($1) }.squareRoot()
        let factor = clippingFactor(norm: norm, limit: clip)
        count += 1
        if norm <= clip { within += 1 }
        for index in sums.indices { sums[index] += factor * Double(state.values[index]) }
    }

    public mutating func finish() throws(AggregationError) -> AdapterState {
        addGaussianNoise(to: &sums, standardDeviation: noiseMultiplier * clip, key: key.derived("sum"))
        if let adaptation {
            var stream = NoiseStream(key: key.derived("count"))
            let fraction = AdaptiveClipping.fraction(
                within: within, of: count, expected: expectedClients,
                noise: adaptation.countDeviation * stream.gaussian())
            do throws(Failure) {
                var clipping = try AdaptiveClipping(norm: clip, quantile: adaptation.quantile, rate: adaptation.rate)
                clipping.update(noisyFraction: fraction)
                nextClip = clipping.norm
            } catch {
                preconditionFailure("the plan was checked: \(error.message)")
            }
        }
        var result = global
        for index in sums.indices {
            let value = Float(Double(global.values[index]) + sums[index] / expectedClients)
            guard value.isFinite else { throw Admission.notFinite(index, in: global.layout, client: "") }
            result.values[index] = value
        }
        return result
    }
}
