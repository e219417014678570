/// Where the gradients of the trained tensors go: one sum over all tokens, or a row for each sequence.

/// The tokens of a batch in parts, and a flat gradient for each part. Ordinary training has one part.
struct GradientTarget {
    /// The first part's flat gradient.
    let base: UnsafeMutablePointer<Float>
    /// Floats from one part's gradient to the next one's.
    let stride: Int
    /// Tokens whose contributions make up each part's gradient.
    let parts: [Range<Int>]
    /// Whether a gradient is added to what stands there, or takes its place.
    let isAdded: Bool

    /// Factor of what stands there.
    var beta: Float { isAdded ? 1 : 0 }

    func gradient(_ part: Int) -> UnsafeMutablePointer<Float> { base + part * stride }
}
