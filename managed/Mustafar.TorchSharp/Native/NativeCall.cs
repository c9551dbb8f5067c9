using System.Runtime.InteropServices;

namespace Mustafar.Native;

/// <summary>Turns the status of a native call into an exception.</summary>
internal static unsafe class NativeCall
{
    /// <summary>Throws unless the call returned OK. Must follow it on the same thread.</summary>
    internal static void Check(int status)
    {
        if (status != (int)Status.Ok)
        {
            throw Failure((Status)status, Marshal.PtrToStringUTF8((nint)NativeMethods.LastError()) ?? string.Empty);
        }
    }

    private static Exception Failure(Status status, string text) => status switch
    {
        Status.InvalidArgument or Status.BufferTooSmall => new ArgumentException(text),
        Status.Unsupported => new NotSupportedException(text),
        Status.CorruptData => new InvalidDataException(text),
        Status.OutOfMemory => new InsufficientMemoryException(text),
        _ => new MustafarException($"{status}: {text}"),
    };
}
