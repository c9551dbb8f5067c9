namespace Mustafar.Native;

/// <summary>The limits of the native library, queried once, when the first of them is needed.</summary>
internal static unsafe class Limits
{
    private static readonly Lazy<NativeLimits> Asked = new(() =>
    {
        NativeLimits limits;
        NativeCall.Check(NativeMethods.GetLimits(&limits));
        return limits;
    });

    /// <summary>Number of elements of a unit of the balanced patterns.</summary>
    internal static int BalancedUnit => Asked.Value.BalancedUnit;

    /// <summary>Minimum number of elements that balanced patterns keep of a unit.</summary>
    internal static int FewestBalanced => Asked.Value.FewestBalanced;

    /// <summary>Maximum number of elements that balanced patterns keep of a unit.</summary>
    internal static int MostBalanced => Asked.Value.MostBalanced;

    /// <summary>Maximum number of tokens of a group.</summary>
    internal static int MaxGroupSize => Asked.Value.MaxGroupSize;

    /// <summary>Maximum number of tokens of the recent window.</summary>
    internal static int MaxLocalWindow => Asked.Value.MaxLocalWindow;

    /// <summary>Whether there are kernels for this head_dim.</summary>
    internal static bool IsServed(int headDim) =>
        new ReadOnlySpan<int>(Asked.Value.HeadDims, Asked.Value.NumHeadDims).Contains(headDim);
}
