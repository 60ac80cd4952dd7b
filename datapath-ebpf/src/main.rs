//! The programs: one entry point per hook, each from packet to [`Outcome`](datapath_ebpf::Outcome) to verdict.
//!
//! Built only for target `bpf`; on the host this is an empty `main`, so that cargo, clippy and rust-analyzer take the
//! workspace as it is.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        internal_features,
        reason = "atomic operations that the target's core::sync::atomic lacks: steps/bits.rs"
    )
)]

#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod steps;

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::{
        bindings::tcx_action_base::{TCX_DROP, TCX_NEXT, TCX_REDIRECT},
        macros::{classifier, raw_tracepoint},
        programs::{RawTracePointContext, TcContext},
    };
    use datapath_ebpf::{Forward, Program};

    use crate::{
        programs,
        steps::{Verdict, counters, events, skb::Skb},
    };

    #[classifier]
    pub fn from_pod(ctx: TcContext) -> i32 {
        run(Program::FromPod, &ctx, programs::from_pod::handle)
    }

    #[classifier]
    pub fn to_pod(ctx: TcContext) -> i32 {
        run(Program::ToPod, &ctx, programs::to_pod::handle)
    }

    #[classifier]
    pub fn from_uplink(ctx: TcContext) -> i32 {
        run(Program::FromUplink, &ctx, programs::from_uplink::handle)
    }

    #[classifier]
    pub fn to_uplink(ctx: TcContext) -> i32 {
        run(Program::ToUplink, &ctx, programs::to_uplink::handle)
    }

    #[classifier]
    pub fn from_overlay(ctx: TcContext) -> i32 {
        run(Program::FromOverlay, &ctx, programs::from_overlay::handle)
    }

    /// Ends flows when the agent runs it; never attached, and so none of [`Program`]'s.
    #[raw_tracepoint]
    pub fn collect(ctx: RawTracePointContext) -> u32 {
        programs::collect::handle(&ctx);
        0
    }

    /// The one place where an outcome becomes a verdict.
    ///
    /// What is let through gets `TCX_NEXT`, so that programs of others on the same hook still see it. Ingress programs
    /// have chosen the way out with a redirect helper by the time they report one; egress programs never redirect.
    #[inline(always)]
    fn run(program: Program, ctx: &TcContext, handle: impl FnOnce(Skb) -> Verdict) -> i32 {
        let skb = Skb::new(ctx);
        let length = skb.len();
        let egress = matches!(program, Program::ToPod | Program::ToUplink);
        let (number, verdict) = match handle(skb) {
            Ok(forward @ (Forward::Stack | Forward::Handled)) => (forward as u8, TCX_NEXT),
            // The packet's bytes are kept; the packet itself has ended its way.
            Ok(Forward::Held) => (Forward::Held as u8, TCX_DROP),
            Ok(forward) => (forward as u8, if egress { TCX_NEXT } else { TCX_REDIRECT }),
            Err(reason) => {
                events::dropped(skb, program, reason);
                (reason as u8, TCX_DROP)
            }
        };
        counters::count(program, number, length);
        verdict
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        // Never reached: the build refuses an object in which anything can panic.
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
