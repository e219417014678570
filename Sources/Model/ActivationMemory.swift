/// What a training step's activations take, and the two choices that bound it: tokens at once, and blocks that run again.

import LinearAlgebra

public enum ActivationMemory {
    /// Bytes that saved activations may take where nobody set a limit.
    public static let defaultLimit = 1 << 30
    /// Tokens of whole sequences that run forward and backward at once, unless a sequence alone has more: packing a weight
    /// then costs about 3 % of multiplying with it, and what waits for the backward pass does not grow with the batch.
    static let tokensAtOnce = 512

    /// A thread's packed slabs, decoded tiles and small products, at most.
    static let scratchBytes = 4 << 20

    /// Bytes of a block's activations that wait for its backward pass.
    static func bytes(_ sizes: RecordSizes, saved: ComputeType) -> Int {
        saved == .float32 ? 4 * (sizes.exact + sizes.rounded + sizes.passing) : SavedRecord.byteCount(sizes)
    }
}
