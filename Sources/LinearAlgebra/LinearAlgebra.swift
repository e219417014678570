// LinearAlgebra.
