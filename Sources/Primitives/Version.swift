/// The version of Tributary, as programs print and exchange it.

public enum Version {
    public static let current = "0.1.0"
}
