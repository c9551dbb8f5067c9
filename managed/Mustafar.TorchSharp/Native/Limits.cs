namespace Mustafar.Native;

/// <summary>The numbers up to which the native library serves. They are asked of it once, when the first of them is needed.</summary>
internal static unsafe class Limits
{
    private static readonly Lazy<NativeLimits> Asked = new(() =>
    {
        NativeLimits limits;
        NativeCall.Check(NativeMethods.GetLimits(&limits));
        return limits;
    });

    /// <summary>Elements of a unit of the balanced patterns.</summary>
    internal static int BalancedUnit => Asked.Value.BalancedUnit;

    /// <summary>Elements that balanced patterns keep of a unit, at least.</summary>
    internal static int FewestBalanced => Asked.Value.FewestBalanced;

    /// <summary>Elements that balanced patterns keep of a unit, at most.</summary>
    internal static int MostBalanced => Asked.Value.MostBalanced;

    /// <summary>Tokens of a group, at most.</summary>
    internal static int MaxGroupSize => Asked.Value.MaxGroupSize;

    /// <summary>Tokens of the recent window, at most.</summary>
    internal static int MaxLocalWindow => Asked.Value.MaxLocalWindow;

    /// <summary>Whether there are kernels for heads of so many elements.</summary>
    internal static bool IsServed(int headDim) =>
        new ReadOnlySpan<int>(Asked.Value.HeadDims, Asked.Value.NumHeadDims).Contains(headDim);
}
