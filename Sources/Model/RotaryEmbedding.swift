/// Rotary positions: the angles by which queries and keys turn (Su et al. 2021, arXiv:2104.09864).

import Checkpoints
import Glibc

/// Frequencies of a model's rotary positions, and a table of cosines and sines that grows with the positions in use.
struct RotaryEmbedding {
    /// Radians a position for each of headSize / 2 pairs, in single precision as transformers has them.
    private let frequencies: [Float]
    /// `[positions, headSize / 2]`.
    private(set) var cosines: [Float] = []
    private(set) var sines: [Float] = []
    private var positions = 0

    init(_ configuration: ModelConfiguration) {
        let size = configuration.headSize
        frequencies = (0..<size / 2).map { pair in
            let plain = 1 / pow(configuration.ropeTheta, Double(2 * pair) / Double(size))
            return Float(configuration.ropeScaling?.scaled(plain) ?? plain)
        }
    }

    /// Makes the tables cover positions 0..<count.
    mutating func reserve(_ count: Int) {
        guard count > positions else { return }
        let wanted = max(count, 2 * positions)
        cosines.reserveCapacity(wanted * frequencies.count)
        sines.reserveCapacity(wanted * frequencies.count)
        for position in positions..<wanted {
            for frequency in frequencies {
                // The angle is a single-precision product, as in transformers.
                let angle = Double(Float(position) * frequency)
                cosines.append(Float(cos(angle)))
                sines.append(Float(sin(angle)))
            }
        }
        positions = wanted
    }
}
